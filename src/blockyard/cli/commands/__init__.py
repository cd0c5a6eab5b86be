"""One file per subcommand, named after it; `blockyard.cli.command` says what a file holds."""
