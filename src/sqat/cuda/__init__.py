"""GPU implementations of operations of `sqat.model`."""
