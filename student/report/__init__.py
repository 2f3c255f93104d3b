"""What a run has to show for itself: images, charts, and one page that holds them."""
