"""What a person sees: info, verify, peek, progress."""
