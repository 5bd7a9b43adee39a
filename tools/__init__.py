"""Programs for maintainers: experiments, reports, releases, benchmarks. Nothing imports them."""
