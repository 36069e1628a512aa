/* What Python sees of libibverbs: flat functions over opaque objects. No preprocessor here: cffi reads this file as well.
 * A function that returns int returns 0 or a positive errno, unless it says otherwise; one that returns a pointer returns NULL
 * and puts the errno into *error. */

struct ibv_context;
struct ibv_pd;
struct ibv_mr;
struct ibv_mw;
struct ibv_comp_channel;
struct ibv_cq;
struct ibv_qp;

struct iso_limits {
    uint64_t mr_bytes_max;
    int qps_max, qp_requests_max, cqs_max, cq_entries_max, mrs_max, mws_max, pds_max, reads_in_flight_max;
    int window_type; /* 0: none, 1: type 2A, 2: type 2B, 3: type 1 only */
    uint8_t ports;
};

struct iso_port {
    uint32_t message_bytes_max;
    int state, mtu, gids, link_layer;
    uint16_t lid;
};

struct iso_path {
    uint8_t gid[16];
    uint32_t qpn, remote_psn;
    int mtu;
    uint16_t lid;
    uint8_t gid_index, port, reads_in_flight, rnr_timer, traffic_class;
};

struct iso_completion {
    uint64_t id;
    int status, opcode;
    uint32_t vendor_error, size_bytes, immediate, flags;
};

struct iso_event {
    int type, port;
    uint32_t qpn;
};

struct iso_piece {
    uint64_t address;
    uint32_t size_bytes, local_key;
};

int iso_device_names(char *out, size_t room);
struct ibv_context *iso_open(const char *name, int *error);
int iso_close(struct ibv_context *context);
int iso_query_device(struct ibv_context *context, struct iso_limits *limits);
int iso_query_port(struct ibv_context *context, uint8_t port, struct iso_port *out);
int iso_event_fd(struct ibv_context *context);
int iso_take_event(struct ibv_context *context, struct iso_event *out);

struct ibv_pd *iso_alloc_pd(struct ibv_context *context, int *error);
int iso_free_pd(struct ibv_pd *pd);
struct ibv_mr *iso_register(struct ibv_pd *pd, void *address, size_t size_bytes, int access, int *error);
struct ibv_mr *iso_register_dmabuf(struct ibv_pd *pd, uint64_t offset, size_t size_bytes, uint64_t address, int fd, int access,
                                   int *error);
uint32_t iso_local_key(struct ibv_mr *mr);
uint32_t iso_remote_key(struct ibv_mr *mr);
int iso_deregister(struct ibv_mr *mr);
struct ibv_mw *iso_alloc_window(struct ibv_pd *pd, int *error);
uint32_t iso_window_key(struct ibv_mw *mw);
void iso_set_window_key(struct ibv_mw *mw, uint32_t key);
int iso_free_window(struct ibv_mw *mw);

struct ibv_comp_channel *iso_make_channel(struct ibv_context *context, int *error);
int iso_channel_fd(struct ibv_comp_channel *channel);
int iso_free_channel(struct ibv_comp_channel *channel);
struct ibv_cq *iso_make_cq(struct ibv_context *context, int entries, struct ibv_comp_channel *channel, int *error);
int iso_free_cq(struct ibv_cq *cq);
int iso_arm_cq(struct ibv_cq *cq);
int iso_take_channel_events(struct ibv_comp_channel *channel, struct ibv_cq *cq); /* how many were acknowledged */
int iso_poll(struct ibv_cq *cq, struct iso_completion *out, int room); /* a count, or a negative errno */

struct ibv_qp *iso_make_qp(struct ibv_pd *pd, struct ibv_cq *cq, int sends, int receives, int inline_bytes, int *inline_granted,
                           int *error);
uint32_t iso_qp_number(struct ibv_qp *qp);
int iso_qp_to_init(struct ibv_qp *qp, uint8_t port, int access);
int iso_qp_to_receive(struct ibv_qp *qp, const struct iso_path *path);
int iso_qp_to_send(struct ibv_qp *qp, uint32_t own_psn, int reads_in_flight, int timeout, int retries, int rnr_retries);
int iso_qp_to_error(struct ibv_qp *qp);
int iso_free_qp(struct ibv_qp *qp);

int iso_post(struct ibv_qp *qp, uint64_t id, int opcode, int flags, const struct iso_piece *pieces, int count,
             uint64_t remote_address, uint32_t remote_key, uint32_t immediate);
int iso_post_bind(struct ibv_qp *qp, uint64_t id, int flags, struct ibv_mw *mw, uint32_t key, struct ibv_mr *mr,
                  uint64_t address, uint64_t size_bytes, int access);
int iso_post_invalidate(struct ibv_qp *qp, uint64_t id, int flags, uint32_t key);
int iso_post_receives(struct ibv_qp *qp, uint64_t id, int count); /* so many of nothing */
const char *iso_status_words(int status);
