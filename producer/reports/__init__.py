"""What a run did and is doing: figures, pages, the terminal."""
