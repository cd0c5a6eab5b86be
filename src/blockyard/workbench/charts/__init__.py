"""The figures of reports: what each shows (a file per family), their colours, and how they become SVG and PNG."""
