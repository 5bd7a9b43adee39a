"""Programs for maintainers: experiments, reports, releases, throughput. Nothing imports them."""
