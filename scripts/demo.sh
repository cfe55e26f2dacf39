#!/bin/sh
# Trains a conditional network beside two static ones on a fixed subset of Fashion-MNIST: about six minutes on two quiet cores.
# Called by `make demo`; CONDCONV names the command to run.
set -eu
condconv=${CONDCONV:-condconv}
python=$(dirname "$(command -v "$condconv")")/python
debian_folder=/usr/share/datasets/fashion-mnist

if [ ! -d "$debian_folder" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "installing the Debian package dataset-fashion-mnist"
    (apt-get update -qq && apt-get install -qq -y dataset-fashion-mnist) >/dev/null || echo "apt-get could not install it"
fi

data=fashion-mnist
if ! "$python" -c 'from condconv.data import open_source; open_source("fashion-mnist")' 2>/dev/null; then
    echo "notice: Fashion-MNIST is neither installed nor downloadable here; using scikit-learn's digits (8x8 pixels) instead."
    data=digits
fi

echo "a fixed subset, few epochs: 5,000 training and 2,000 validation images at most, 5 epochs (the full set is 60,000)"
exec "$condconv" train --data "$data" --model mobilenetv1_025 --variant condconv --num-experts 8 --twin \
    --epochs 5 --limit-train 5000 --limit-val 2000 --name demo "$@"
