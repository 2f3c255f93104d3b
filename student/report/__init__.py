"""The report of a run: images, charts, tables, and the page that holds them."""
