"""What to build, and building it: a request, a checked job, one output, a folder of outputs."""
