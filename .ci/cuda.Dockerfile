# docker build -f .ci/cuda.Dockerfile -t invocupy-cuda .
# docker run --rm --gpus all invocupy-cuda train --device cuda
FROM python:3.13-slim
COPY . /src
# The extra brings NVRTC and the CUDA headers; the driver comes from the host.
RUN pip install --no-cache-dir '/src[plots,cuda13x]' && rm -rf /src \
 && useradd --create-home user
USER user
WORKDIR /home/user
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["invocupy"]
