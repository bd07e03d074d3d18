/* A program of somebody who knows the header alone: connects a queue pair to itself, writes with an immediate, and checks
   every byte. Linked with the real libibverbs, run with the stand-in. */
#include <arpa/inet.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                               \
    do {                                                               \
        if (!(condition)) {                                            \
            printf("line %d: %s\n", __LINE__, #condition);             \
            exit(1);                                                   \
        }                                                              \
    } while (0)

enum { BYTES = 100000 };

static struct ibv_wc completion(struct ibv_cq *cq)
{
    struct ibv_wc wc;
    int count;
    while ((count = ibv_poll_cq(cq, 1, &wc)) == 0) {
    }
    CHECK(count == 1);
    CHECK(wc.status == IBV_WC_SUCCESS);
    return wc;
}

int main(void)
{
    int count = 0;
    struct ibv_device **list = ibv_get_device_list(&count);
    CHECK(list && count > 0 && !list[count]);
    struct ibv_context *context = ibv_open_device(list[0]);
    CHECK(context && context->async_fd >= 0);
    CHECK(!strcmp(ibv_get_device_name(context->device), list[0]->name));
    ibv_free_device_list(list);

    struct ibv_device_attr device;
    struct ibv_port_attr port;
    CHECK(!ibv_query_device(context, &device) && device.phys_port_cnt == 1 && device.max_sge > 0);
    memset(&port, 0xff, sizeof port);
    CHECK(!ibv_query_port(context, 1, &port));
    CHECK(port.state == IBV_PORT_ACTIVE && port.link_layer == IBV_LINK_LAYER_ETHERNET && port.port_cap_flags2 == 0);

    struct ibv_gid_entry entry, table[16];
    int index = -1;
    for (int i = 0; i < port.gid_tbl_len; i++)
        if (!ibv_query_gid_ex(context, 1, i, &entry, 0) && entry.gid_type == IBV_GID_TYPE_ROCE_V2)
            index = i;
    CHECK(index >= 0);
    CHECK(!ibv_query_gid_ex(context, 1, index, &entry, 0));
    ssize_t entries = ibv_query_gid_table(context, table, 16, 0);
    CHECK(entries > index && !memcmp(table[index].gid.raw, entry.gid.raw, 16));

    struct ibv_pd *pd = ibv_alloc_pd(context);
    struct ibv_comp_channel *channel = ibv_create_comp_channel(context);
    struct ibv_cq *cq = ibv_create_cq(context, 16, &count, channel, 0);
    CHECK(pd && channel && cq && cq->cqe >= 16 && !ibv_req_notify_cq(cq, 0));
    struct ibv_qp_init_attr init = {
        .send_cq = cq, .recv_cq = cq, .qp_type = IBV_QPT_RC,
        .cap = {.max_send_wr = 4, .max_recv_wr = 4, .max_send_sge = 2, .max_recv_sge = 1},
    };
    struct ibv_qp *qp = ibv_create_qp(pd, &init);
    CHECK(qp && qp->qp_num && qp->state == IBV_QPS_RESET);

    struct ibv_qp_attr attr = {
        .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE,
    };
    CHECK(!ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
    struct ibv_qp_attr rtr = {
        .qp_state = IBV_QPS_RTR, .path_mtu = port.active_mtu, .dest_qp_num = qp->qp_num, .min_rnr_timer = 12,
        .ah_attr = {.is_global = 1, .port_num = 1,
                    .grh = {.dgid = entry.gid, .sgid_index = index, .hop_limit = 255}},
    };
    CHECK(!ibv_modify_qp(qp, &rtr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                         IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
    struct ibv_qp_attr rts = {.qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 6, .rnr_retry = 7};
    CHECK(!ibv_modify_qp(qp, &rts, IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                         IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC));
    CHECK(qp->state == IBV_QPS_RTS);

    unsigned char *from = malloc(BYTES), *to = calloc(BYTES, 1);
    for (int i = 0; i < BYTES; i++)
        from[i] = i * 7 + i / 256;
    struct ibv_mr *source = ibv_reg_mr(pd, from, BYTES, IBV_ACCESS_LOCAL_WRITE);
    int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_RELAXED_ORDERING;
    struct ibv_mr *target = ibv_reg_mr(pd, to, BYTES, access);
    CHECK(source && target && source->length == BYTES && target->addr == to);

    struct ibv_recv_wr receive = {.wr_id = 1}, *bad_receive;
    CHECK(!ibv_post_recv(qp, &receive, &bad_receive));
    struct ibv_sge parts[2] = {
        {(uintptr_t)from, 1000, source->lkey},
        {(uintptr_t)from + 1000, BYTES - 1000, source->lkey},
    };
    struct ibv_send_wr write = {
        .wr_id = 2, .sg_list = parts, .num_sge = 2, .opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
        .send_flags = IBV_SEND_SIGNALED, .imm_data = htonl(77),
        .wr.rdma = {.remote_addr = (uintptr_t)to, .rkey = target->rkey},
    }, *bad;
    CHECK(!ibv_post_send(qp, &write, &bad));

    struct ibv_cq *told;
    void *data;
    CHECK(!ibv_get_cq_event(channel, &told, &data) && told == cq && data == &count);
    ibv_ack_cq_events(cq, 1);
    int received = 0, sent = 0;
    while (!received || !sent) {
        struct ibv_wc wc = completion(cq);
        CHECK(wc.qp_num == qp->qp_num);
        if (wc.opcode & IBV_WC_RECV) {
            CHECK(wc.wr_id == 1 && wc.opcode == IBV_WC_RECV_RDMA_WITH_IMM && wc.byte_len == BYTES);
            CHECK(wc.wc_flags & IBV_WC_WITH_IMM && ntohl(wc.imm_data) == 77);
            received++;
        } else {
            CHECK(wc.wr_id == 2 && wc.opcode == IBV_WC_RDMA_WRITE);
            sent++;
        }
    }
    CHECK(!memcmp(from, to, BYTES));

    struct ibv_qp_attr found;
    CHECK(!ibv_query_qp(qp, &found, IBV_QP_STATE | IBV_QP_TIMEOUT, &init));
    CHECK(found.qp_state == IBV_QPS_RTS && found.timeout == 14 && init.send_cq == cq);
    CHECK(!ibv_destroy_qp(qp) && !ibv_dereg_mr(source) && !ibv_dereg_mr(target) && !ibv_destroy_cq(cq));
    CHECK(!ibv_destroy_comp_channel(channel) && !ibv_dealloc_pd(pd) && !ibv_close_device(context));
    printf("all %d bytes\n", BYTES);
    return 0;
}
