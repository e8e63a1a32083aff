"""The other training-free editing methods, one file each, on the same network and the same slots."""
