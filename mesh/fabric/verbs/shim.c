/* Flat functions over libibverbs, for Python. Nothing is decided here: each function fills a structure and calls one verb.
 * Many verbs are static inline in the header (post_send, poll_cq, bind), which is why there is C at all. */

#include <arpa/inet.h>
#include <errno.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <string.h>

#include "shim.h" /* the types of stdint.h stand in verbs.h */

#define PIECES_MAX 32

static void *or_error(void *made, int *error)
{
    if (!made)
        *error = errno ? errno : EIO;
    return made;
}

/* Some verbs return an errno, some -1 with errno set. */
static int as_error(int result)
{
    if (result == 0)
        return 0;
    return result > 0 ? result : (errno ? errno : EIO);
}

int iso_device_names(char *out, size_t room)
{
    int count = 0;
    struct ibv_device **list = ibv_get_device_list(&count);
    size_t used = 0;
    if (!list)
        return errno ? errno : EIO;
    out[0] = 0;
    for (int i = 0; i < count; i++) {
        int written = snprintf(out + used, room - used, "%s\n", ibv_get_device_name(list[i]));
        if (written < 0 || (size_t)written >= room - used)
            break;
        used += (size_t)written;
    }
    ibv_free_device_list(list);
    return 0;
}

struct ibv_context *iso_open(const char *name, int *error)
{
    int count = 0;
    struct ibv_context *context = NULL;
    struct ibv_device **list = ibv_get_device_list(&count);
    *error = ENODEV;
    if (!list)
        return or_error(NULL, error);
    for (int i = 0; i < count; i++) {
        if (strcmp(ibv_get_device_name(list[i]), name) == 0) {
            errno = 0;
            context = or_error(ibv_open_device(list[i]), error);
            break;
        }
    }
    ibv_free_device_list(list);
    return context;
}

int iso_close(struct ibv_context *context) { return as_error(ibv_close_device(context)); }

int iso_query_device(struct ibv_context *context, struct iso_limits *limits)
{
    struct ibv_device_attr attr;
    int failed = as_error(ibv_query_device(context, &attr));
    if (failed)
        return failed;
    memset(limits, 0, sizeof(*limits));
    limits->mr_bytes_max = attr.max_mr_size;
    limits->qps_max = attr.max_qp;
    limits->qp_requests_max = attr.max_qp_wr;
    limits->cqs_max = attr.max_cq;
    limits->cq_entries_max = attr.max_cqe;
    limits->mrs_max = attr.max_mr;
    limits->mws_max = attr.max_mw;
    limits->pds_max = attr.max_pd;
    limits->reads_in_flight_max = attr.max_qp_rd_atom;
    limits->ports = attr.phys_port_cnt;
    if (attr.device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2B)
        limits->window_type = 2;
    else if (attr.device_cap_flags & IBV_DEVICE_MEM_WINDOW_TYPE_2A)
        limits->window_type = 1;
    else if (attr.device_cap_flags & IBV_DEVICE_MEM_WINDOW)
        limits->window_type = 3;
    return 0;
}

int iso_query_port(struct ibv_context *context, uint8_t port, struct iso_port *out)
{
    struct ibv_port_attr attr;
    int failed;
    memset(&attr, 0, sizeof(attr));
    failed = as_error(ibv_query_port(context, port, &attr));
    if (failed)
        return failed;
    out->message_bytes_max = attr.max_msg_sz;
    out->state = attr.state;
    out->mtu = attr.active_mtu;
    out->gids = attr.gid_tbl_len;
    out->link_layer = attr.link_layer;
    out->lid = attr.lid;
    return 0;
}

int iso_event_fd(struct ibv_context *context) { return context->async_fd; }

int iso_take_event(struct ibv_context *context, struct iso_event *out)
{
    struct ibv_async_event event;
    if (ibv_get_async_event(context, &event))
        return errno ? errno : EAGAIN;
    memset(out, 0, sizeof(*out));
    out->type = event.event_type;
    switch (event.event_type) {
    case IBV_EVENT_QP_FATAL:
    case IBV_EVENT_QP_REQ_ERR:
    case IBV_EVENT_QP_ACCESS_ERR:
    case IBV_EVENT_COMM_EST:
    case IBV_EVENT_SQ_DRAINED:
    case IBV_EVENT_PATH_MIG:
    case IBV_EVENT_PATH_MIG_ERR:
    case IBV_EVENT_QP_LAST_WQE_REACHED:
        out->qpn = event.element.qp->qp_num;
        break;
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_PORT_ERR:
    case IBV_EVENT_LID_CHANGE:
    case IBV_EVENT_PKEY_CHANGE:
    case IBV_EVENT_SM_CHANGE:
    case IBV_EVENT_CLIENT_REREGISTER:
    case IBV_EVENT_GID_CHANGE:
        out->port = event.element.port_num;
        break;
    default:
        break;
    }
    ibv_ack_async_event(&event);
    return 0;
}

struct ibv_pd *iso_alloc_pd(struct ibv_context *context, int *error) { return or_error(ibv_alloc_pd(context), error); }
int iso_free_pd(struct ibv_pd *pd) { return as_error(ibv_dealloc_pd(pd)); }

struct ibv_mr *iso_register(struct ibv_pd *pd, void *address, size_t size_bytes, int access, int *error)
{
    return or_error(ibv_reg_mr(pd, address, size_bytes, access), error);
}

struct ibv_mr *iso_register_dmabuf(struct ibv_pd *pd, uint64_t offset, size_t size_bytes, uint64_t address, int fd, int access,
                                   int *error)
{
#ifdef ISO_DMABUF
    return or_error(ibv_reg_dmabuf_mr(pd, offset, size_bytes, address, fd, access), error);
#else
    (void)pd, (void)offset, (void)size_bytes, (void)address, (void)fd, (void)access;
    *error = EOPNOTSUPP;
    return NULL;
#endif
}

uint32_t iso_local_key(struct ibv_mr *mr) { return mr->lkey; }
uint32_t iso_remote_key(struct ibv_mr *mr) { return mr->rkey; }
int iso_deregister(struct ibv_mr *mr) { return as_error(ibv_dereg_mr(mr)); }
struct ibv_mw *iso_alloc_window(struct ibv_pd *pd, int *error) { return or_error(ibv_alloc_mw(pd, IBV_MW_TYPE_2), error); }
uint32_t iso_window_key(struct ibv_mw *mw) { return mw->rkey; }
void iso_set_window_key(struct ibv_mw *mw, uint32_t key) { mw->rkey = key; }
int iso_free_window(struct ibv_mw *mw) { return as_error(ibv_dealloc_mw(mw)); }

struct ibv_comp_channel *iso_make_channel(struct ibv_context *context, int *error)
{
    return or_error(ibv_create_comp_channel(context), error);
}

int iso_channel_fd(struct ibv_comp_channel *channel) { return channel->fd; }
int iso_free_channel(struct ibv_comp_channel *channel) { return as_error(ibv_destroy_comp_channel(channel)); }

struct ibv_cq *iso_make_cq(struct ibv_context *context, int entries, struct ibv_comp_channel *channel, int *error)
{
    return or_error(ibv_create_cq(context, entries, NULL, channel, 0), error);
}

int iso_free_cq(struct ibv_cq *cq) { return as_error(ibv_destroy_cq(cq)); }
int iso_arm_cq(struct ibv_cq *cq) { return as_error(ibv_req_notify_cq(cq, 0)); }

int iso_take_channel_events(struct ibv_comp_channel *channel, struct ibv_cq *cq)
{
    int count = 0;
    struct ibv_cq *of;
    void *about;
    while (count < 1024 && ibv_get_cq_event(channel, &of, &about) == 0)
        count++;
    if (count)
        ibv_ack_cq_events(cq, (unsigned int)count);
    return count;
}

int iso_poll(struct ibv_cq *cq, struct iso_completion *out, int room)
{
    struct ibv_wc found[32];
    int count = ibv_poll_cq(cq, room > 32 ? 32 : room, found);
    if (count < 0)
        return count == -1 ? -(errno ? errno : EIO) : count;
    for (int i = 0; i < count; i++) {
        out[i].id = found[i].wr_id;
        out[i].status = found[i].status;
        out[i].opcode = found[i].opcode;
        out[i].vendor_error = found[i].vendor_err;
        out[i].size_bytes = found[i].byte_len;
        out[i].flags = found[i].wc_flags;
        out[i].immediate = (found[i].wc_flags & IBV_WC_WITH_IMM) ? ntohl(found[i].imm_data) : 0;
    }
    return count;
}

struct ibv_qp *iso_make_qp(struct ibv_pd *pd, struct ibv_cq *cq, int sends, int receives, int inline_bytes, int *inline_granted,
                           int *error)
{
    struct ibv_qp_init_attr attr;
    struct ibv_qp *qp;
    memset(&attr, 0, sizeof(attr));
    attr.send_cq = cq;
    attr.recv_cq = cq;
    attr.cap.max_send_wr = (uint32_t)sends;
    attr.cap.max_recv_wr = (uint32_t)receives;
    attr.cap.max_send_sge = 1;
    attr.cap.max_recv_sge = 1;
    attr.cap.max_inline_data = (uint32_t)inline_bytes;
    attr.qp_type = IBV_QPT_RC;
    qp = or_error(ibv_create_qp(pd, &attr), error);
    *inline_granted = qp ? (int)attr.cap.max_inline_data : 0;
    return qp;
}

uint32_t iso_qp_number(struct ibv_qp *qp) { return qp->qp_num; }

int iso_qp_to_init(struct ibv_qp *qp, uint8_t port, int access)
{
    struct ibv_qp_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.qp_state = IBV_QPS_INIT;
    attr.port_num = port;
    attr.qp_access_flags = (unsigned int)access;
    return as_error(ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS));
}

int iso_qp_to_receive(struct ibv_qp *qp, const struct iso_path *path)
{
    struct ibv_qp_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.qp_state = IBV_QPS_RTR;
    attr.path_mtu = (enum ibv_mtu)path->mtu;
    attr.dest_qp_num = path->qpn;
    attr.rq_psn = path->remote_psn;
    attr.max_dest_rd_atomic = path->reads_in_flight;
    attr.min_rnr_timer = path->rnr_timer;
    attr.ah_attr.is_global = 1;
    attr.ah_attr.dlid = path->lid;
    attr.ah_attr.port_num = path->port;
    memcpy(attr.ah_attr.grh.dgid.raw, path->gid, 16);
    attr.ah_attr.grh.sgid_index = path->gid_index;
    attr.ah_attr.grh.hop_limit = 64;
    attr.ah_attr.grh.traffic_class = path->traffic_class;
    return as_error(ibv_modify_qp(qp, &attr,
                                  IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN |
                                      IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER));
}

int iso_qp_to_send(struct ibv_qp *qp, uint32_t own_psn, int reads_in_flight, int timeout, int retries, int rnr_retries)
{
    struct ibv_qp_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.qp_state = IBV_QPS_RTS;
    attr.sq_psn = own_psn;
    attr.timeout = (uint8_t)timeout;
    attr.retry_cnt = (uint8_t)retries;
    attr.rnr_retry = (uint8_t)rnr_retries;
    attr.max_rd_atomic = (uint8_t)reads_in_flight;
    return as_error(ibv_modify_qp(qp, &attr,
                                  IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
                                      IBV_QP_MAX_QP_RD_ATOMIC));
}

int iso_qp_to_error(struct ibv_qp *qp)
{
    struct ibv_qp_attr attr;
    memset(&attr, 0, sizeof(attr));
    attr.qp_state = IBV_QPS_ERR;
    return as_error(ibv_modify_qp(qp, &attr, IBV_QP_STATE));
}

int iso_free_qp(struct ibv_qp *qp) { return as_error(ibv_destroy_qp(qp)); }

static int post(struct ibv_qp *qp, struct ibv_send_wr *request)
{
    struct ibv_send_wr *refused = NULL;
    return as_error(ibv_post_send(qp, request, &refused));
}

int iso_post(struct ibv_qp *qp, uint64_t id, int opcode, int flags, const struct iso_piece *pieces, int count,
             uint64_t remote_address, uint32_t remote_key, uint32_t immediate)
{
    struct ibv_sge list[PIECES_MAX];
    struct ibv_send_wr request;
    if (count < 0 || count > PIECES_MAX)
        return EINVAL;
    for (int i = 0; i < count; i++) {
        list[i].addr = pieces[i].address;
        list[i].length = pieces[i].size_bytes;
        list[i].lkey = pieces[i].local_key;
    }
    memset(&request, 0, sizeof(request));
    request.wr_id = id;
    request.opcode = (enum ibv_wr_opcode)opcode;
    request.send_flags = (unsigned int)flags;
    request.sg_list = list;
    request.num_sge = count;
    request.wr.rdma.remote_addr = remote_address;
    request.wr.rdma.rkey = remote_key;
    if (opcode == IBV_WR_RDMA_WRITE_WITH_IMM || opcode == IBV_WR_SEND_WITH_IMM)
        request.imm_data = htonl(immediate);
    return post(qp, &request);
}

int iso_post_bind(struct ibv_qp *qp, uint64_t id, int flags, struct ibv_mw *mw, uint32_t key, struct ibv_mr *mr,
                  uint64_t address, uint64_t size_bytes, int access)
{
    struct ibv_send_wr request;
    memset(&request, 0, sizeof(request));
    request.wr_id = id;
    request.opcode = IBV_WR_BIND_MW;
    request.send_flags = (unsigned int)flags;
    request.bind_mw.mw = mw;
    request.bind_mw.rkey = key;
    request.bind_mw.bind_info.mr = mr;
    request.bind_mw.bind_info.addr = address;
    request.bind_mw.bind_info.length = size_bytes;
    request.bind_mw.bind_info.mw_access_flags = (unsigned int)access;
    return post(qp, &request);
}

int iso_post_invalidate(struct ibv_qp *qp, uint64_t id, int flags, uint32_t key)
{
    struct ibv_send_wr request;
    memset(&request, 0, sizeof(request));
    request.wr_id = id;
    request.opcode = IBV_WR_LOCAL_INV;
    request.send_flags = (unsigned int)flags;
    request.invalidate_rkey = key;
    return post(qp, &request);
}

int iso_post_receives(struct ibv_qp *qp, uint64_t id, int count)
{
    struct ibv_recv_wr request, *refused = NULL;
    int failed = 0;
    memset(&request, 0, sizeof(request));
    request.wr_id = id;
    for (int i = 0; i < count && !failed; i++)
        failed = as_error(ibv_post_recv(qp, &request, &refused));
    return failed;
}

const char *iso_status_words(int status) { return ibv_wc_status_str((enum ibv_wc_status)status); }
