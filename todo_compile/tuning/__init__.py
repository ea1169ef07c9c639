"""A plan with a budget: candidates, scores, the exact choice, and drawing to vouch for it."""
