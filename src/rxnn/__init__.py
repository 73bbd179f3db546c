"""RxNN's import paths, as the model cards of the SQAT family use them: a thin layer over `sqat`."""
