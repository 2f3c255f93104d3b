"""How good a student is: metrics of what it detects, how far away it says that is, and how well it imitates."""
