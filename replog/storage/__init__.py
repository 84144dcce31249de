"""What a node keeps on disk: the protocol of a storage, the built-in ones, and the directory."""
