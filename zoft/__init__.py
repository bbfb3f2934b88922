"""zoft: learned zeroth-order optimizers."""
