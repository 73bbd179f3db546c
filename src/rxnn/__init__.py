"""The import paths of RxNN, as the model cards of the SQAT family use them: only names are adapted to `sqat` here."""
