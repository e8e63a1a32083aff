"""What the network holds of a picture: features to look at, and to use for correspondence and segmentation."""
