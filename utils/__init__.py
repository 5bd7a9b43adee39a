"""What depends on neither data nor models: options, command line, metrics, figures, devices."""
