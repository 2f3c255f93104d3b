"""Official Waymo Open Dataset TFRecords to plain numpy values: framing, protocol buffers, range images."""
