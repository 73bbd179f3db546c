"""`sqat compare`: trains variants under one budget, seed by seed, and writes a report on them."""
