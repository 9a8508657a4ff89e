"""Commands that belong to no paper.  Nothing imports this package."""
