"""What runs on GPUs in place of the plain operators of `sqat.model`."""
