# agentrm_jax in an image: for a CPU by default, for NVIDIA GPUs with --build-arg EXTRAS=cuda.
#
#   docker build -t agentrm .
#   docker run --rm -v "$PWD/runs:/work/runs" agentrm demo
#   docker build -t agentrm:cuda --build-arg EXTRAS=cuda . && docker run --rm --gpus all -v "$PWD/runs:/work/runs" agentrm:cuda train --config=configs/sft.py
#
# jax[cuda] brings CUDA as wheels, so both images start from plain Python; the host needs NVIDIA's driver and container toolkit.
FROM python:3.12-slim AS build
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir build==1.6.1 && python -m build --wheel --outdir /dist

FROM python:3.12-slim
ARG EXTRAS=""
COPY --from=build /dist /dist
COPY constraints.txt /dist/constraints.txt
RUN wheel="$(echo /dist/*.whl)" \
    && pip install --no-cache-dir -c /dist/constraints.txt "${wheel}${EXTRAS:+[${EXTRAS}]}" \
    && rm -r /dist \
    && useradd --create-home --uid 1000 agentrm \
    && mkdir /work && chown agentrm /work
USER 1000
WORKDIR /work
ENTRYPOINT ["agentrm"]
CMD ["--help"]
