"""Time and memory of conditional networks beside their static twins and timm's implementation.

`make bench` runs these modules one after the other, `python -m benchmarks.speed.<module>` one of them. The rules:

* a conditional network is compared with its static twin in the same process, with the same layout (channels_last), the
  same folding (batch norm folded in both, or in neither) and the same number of threads;
* contenders take turns in bursts (`harness.py`), so that whatever else the machine does meets all of them alike; a
  ratio is the median of the ratios of each turn, and medians are given with their 10th and 90th percentiles;
* every row says on which machine, with which versions and which strategy it was measured, and how quiet it was there;
* a roofline stands beside each ratio (`roofline.py`), from the peak and the bandwidth measured at the start of the run.
"""
