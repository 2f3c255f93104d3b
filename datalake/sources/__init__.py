"""What a lake is built from: one package for each kind of source."""
