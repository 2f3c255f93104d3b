#!/bin/sh
# What a GPU machine without a network needs beside the checkout, in two folders that git ignores and that go with it:
#   .dev/    real inputs from ../shared, and the teachers in the folder $1, trained beforehand by pipelines/train_teachers.py
#   .whl/    wheels that its Python 3.12 lacks (it has torch, torchvision, pyarrow, fsspec, protobuf, tensorboard, rich …)
#
#     sh benchmarks/gpu/carry.sh TEACHERS
set -eu
teachers=${1:?folder of the teachers spvcnn and mask_rcnn}
mkdir -p .dev .whl
for name in spvnas_official_golden.npz spvnas_65gmacs_net_config.json spvnas_65gmacs_state_dict_shapes.json \
    semantickitti_000000.bin waymo_fullsize_raycast.tfrecord; do
    cp -f "../shared/data/$name" .dev/
done
cp -f ../shared/tools/seeded_weights.py .dev/
chmod -R u+w .dev
for name in spvcnn mask_rcnn; do
    mkdir -p ".dev/teachers/$name"
    cp -f "$teachers/$name/card.json" "$teachers/$name/weights.safetensors" ".dev/teachers/$name/"
done
python3 -m pip download -q --no-deps --only-binary=:all: --implementation cp --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d .whl \
    waymo-open-dataset-tf-2-12-0==1.6.7 pycocotools==2.0.11 tyro==1.0.16 typeguard==4.6.0 docstring_parser==0.18.0 \
    zlib-ng==1.1.0 google-crc32c==1.9.0
du -ch .dev .whl | tail -n 1
