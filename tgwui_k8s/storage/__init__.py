"""Model folders on disk: finding, describing, checking and prefetching them. Read only."""
