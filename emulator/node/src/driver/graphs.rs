//! Functions of graphs.
//!
//! Nodes come from captures alone; the functions that add them one by one are not emulated.

use std::sync::{Arc, Mutex};

use super::graph::{Executable, Graph, NodeType};
use super::{Driver, Error, Handle, Result, handles::new_handle};

/// `CUDA_GRAPH_INSTANTIATE_FLAG_*`: free allocations on launch, upload, use node priorities. None of them changes
/// what can be observed here. Launches from the device (4) are not emulated.
const INSTANTIATE_FLAGS: u64 = 1 | 2 | 8;
const DEVICE_LAUNCH: u64 = 4;

impl Driver {
    /// `cuGraphCreate`: an empty graph.
    pub fn graph_create(&self) -> Handle {
        let handle = new_handle();
        self.graphs.insert(handle, Arc::default());
        handle
    }

    /// `cuGraphDestroy`. What was instantiated from it stays.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is none such.
    pub fn graph_destroy(&self, graph: Handle) -> Result<()> {
        self.graphs.remove(graph).map(|_| ()).map_err(|_| Error::InvalidValue)
    }

    fn graph(&self, graph: Handle) -> Result<Arc<Graph>> {
        self.graphs.find(graph).map_err(|_| Error::InvalidValue)
    }

    pub(super) fn executable(&self, executable: Handle) -> Result<Arc<Executable>> {
        self.executables.find(executable).map_err(|_| Error::InvalidValue)
    }

    /// `cuGraphGetNodes`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph.
    pub fn graph_nodes(&self, graph: Handle) -> Result<Vec<Handle>> {
        Ok(self.graph(graph)?.nodes().iter().map(|node| node.handle).collect())
    }

    /// `cuGraphGetRootNodes`: those that depend on none.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph.
    pub fn graph_root_nodes(&self, graph: Handle) -> Result<Vec<Handle>> {
        let nodes = self.graph(graph)?.nodes();
        Ok(nodes.iter().filter(|node| node.dependencies.is_empty()).map(|node| node.handle).collect())
    }

    /// `cuGraphGetEdges`: each dependency and the node that depends on it.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph.
    pub fn graph_edges(&self, graph: Handle) -> Result<Vec<(Handle, Handle)>> {
        let nodes = self.graph(graph)?.nodes();
        Ok(nodes
            .iter()
            .flat_map(|node| node.dependencies.iter().map(|dependency| (*dependency, node.handle)))
            .collect())
    }

    /// `cuGraphNodeGetType`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such node in any graph.
    pub fn node_type(&self, node: Handle) -> Result<NodeType> {
        let graphs = self.graphs.all();
        let found =
            graphs.iter().find_map(|graph| graph.nodes().into_iter().find(|other| other.handle == node));
        found.map(|node| node.work.kind()).ok_or(Error::InvalidValue)
    }

    /// `cuGraphInstantiate` in its forms: an executable copy of the graph.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is no such graph or the flags are unknown; [`Error::NotSupported`] for launches
    /// from the device.
    pub fn graph_instantiate(&self, graph: Handle, flags: u64) -> Result<Handle> {
        let graph = self.graph(graph)?;
        if flags & DEVICE_LAUNCH != 0 {
            return Err(Error::NotSupported);
        }
        if flags & !INSTANTIATE_FLAGS != 0 {
            return Err(Error::InvalidValue);
        }
        let handle = new_handle();
        let (nodes, launched) = (graph.plan().into(), Mutex::default());
        self.executables.insert(handle, Arc::new(Executable { nodes, launched, flags }));
        Ok(handle)
    }

    /// `cuGraphExecGetFlags`: those that it was instantiated with.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is none such.
    pub fn graph_exec_flags(&self, executable: Handle) -> Result<u64> {
        Ok(self.executable(executable)?.flags)
    }

    /// `cuGraphExecDestroy`. A launch that is under way is still completed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidValue`] if there is none such.
    pub fn graph_exec_destroy(&self, executable: Handle) -> Result<()> {
        self.executables.remove(executable).map(|_| ()).map_err(|_| Error::InvalidValue)
    }
}
