// gloo over TCP on loopback as a peer of the host benchmark, called as torch calls it for tensors of the host:
// g++ -O2 -std=c++14 gloo.cpp -lgloo; a.out FOLDER RANK WORLD_SIZE, once for each rank.
#include <gloo/allreduce.h>
#include <gloo/math.h>
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/file_store.h>
#include <gloo/transport/tcp/device.h>

#include <chrono>
#include <exception>
#include <memory>
#include <string>

#include "rank.h"

static std::shared_ptr<gloo::rendezvous::Context> context;
static const auto timeout = std::chrono::seconds(60);

static int all_reduce(float *data, size_t count) {
  gloo::AllreduceOptions options(context);
  options.setOutput(data, count);
  options.setReduceFunction([](void *to, const void *a, const void *b, size_t n) { gloo::sum<float>(to, a, b, n); });
  options.setTimeout(timeout);
  gloo::allreduce(options);
  return 0;
}

static int send_to(const void *data, size_t bytes, int peer) {
  auto buffer = context->createUnboundBuffer(const_cast<void *>(data), bytes);
  buffer->send(peer, 1);
  return buffer->waitSend(timeout) ? 0 : 1;
}

static int receive_from(void *data, size_t bytes, int peer) {
  auto buffer = context->createUnboundBuffer(data, bytes);
  buffer->recv(peer, 1);
  return buffer->waitRecv(timeout) ? 0 : 1;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  struct peer peer = {std::stoi(argv[2]), std::stoi(argv[3]), all_reduce, send_to, receive_from};
  try {
    gloo::rendezvous::FileStore store(std::string(argv[1]) + "/store");
    gloo::transport::tcp::attr address("127.0.0.1");
    auto device = gloo::transport::tcp::CreateDevice(address);
    context = std::make_shared<gloo::rendezvous::Context>(peer.rank, peer.world_size);
    context->setTimeout(timeout);
    context->connectFullMesh(store, device);
    return serve(&peer, argv[1]);
  } catch (const std::exception &error) {
    fprintf(stderr, "rank %d: %s\n", peer.rank, error.what());
    return 1;
  }
}
