"""`sqat compare`: variants trained under one budget, pair by pair, and a report on them."""
