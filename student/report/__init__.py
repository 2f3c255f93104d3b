"""What a run has to show for itself: pictures, charts, and one page that holds them."""
