"""Built-in methods, one file each; they use exactly the interface that outside plugins use."""
