"""What bench/run is made of: settings, peer, cluster, tools, measure, report. Standard library only."""
