"""What the speed benchmarks are made of: made-up batches, and the clocks and gauges of a step."""
