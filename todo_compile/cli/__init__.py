"""The command line: `app` has the commands, one a file: each calls the Python API and prints."""
