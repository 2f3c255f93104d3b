"""How good a student is: figures of what it detects, how far away it says that is, and how well it imitates."""
