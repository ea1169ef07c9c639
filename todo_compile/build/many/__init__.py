"""Many builds from one file: read, expand, check, run side by side.

document   YAML with the line of everything
matrix     entries with lists → single builds
checking   all mistakes of a file at once, before any work
memory     what a build will take
schedule   which builds may start now
running    child processes, and what became of them
remote     the same on a Ray cluster
worker     what runs in one: a build that ends with its parent
"""
