"""What is laid out for one machine: faster forms of layers, small memories. Each computes what the core computes."""
