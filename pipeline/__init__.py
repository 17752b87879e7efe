"""Library of the camera streaming pipeline: decides and computes; holds no sockets, threads or processes."""
