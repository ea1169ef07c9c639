"""Find attention in an FX graph, plan key/value factors, rewrite, and prove the result.

Knows nothing of models, files or command lines.
"""
