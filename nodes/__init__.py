"""The running programs: the only place with sockets, cameras, threads and processes."""
