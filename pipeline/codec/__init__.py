"""Networks of the codec (torch)."""
