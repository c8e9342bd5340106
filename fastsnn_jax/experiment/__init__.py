"""The whole job: configs, train, convert, command lines."""
