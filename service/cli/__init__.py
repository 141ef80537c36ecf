"""The command line: options and environment in, calls of the Python API, exit codes out."""
