#!/bin/sh
# Trains a conditional network beside two static ones on pictures under unknown conditions: a few minutes on two quiet cores.
# Called by `make demo`; CONDCONV names the command to run. Further flags go to `condconv train`.
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
    echo "notice: Fashion-MNIST is neither installed nor downloadable here; using scikit-learn's digits, enlarged, instead."
    data=digits
    set -- --input-size 28 "$@"
fi

echo "each picture is as it is, inverted, turned or noisy, and the networks are not told which;"
echo "40,000 training images at most, 4 epochs, three networks"
exec "$condconv" train --data "$data" --recipe fashion_mnist_conditions --twin --name demo "$@"
