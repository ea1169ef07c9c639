"""The commands of the command line, one a file: each calls the Python API and prints."""
