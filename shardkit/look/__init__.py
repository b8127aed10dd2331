"""What a person sees: info, verify, peek, diff, plan, report."""
