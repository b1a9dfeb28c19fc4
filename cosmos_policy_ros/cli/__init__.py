"""The command lines: words in, words out."""
