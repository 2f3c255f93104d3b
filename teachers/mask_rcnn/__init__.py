"""The mask teacher: Mask R-CNN on the images, from scratch or with torchvision's weights."""
